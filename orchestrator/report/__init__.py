"""One page that tells a run: curves, throughput, where the time went, events, environment; and how two runs
differ.

`curves` reads what loggers have written, `charts` draws it as SVG, `page` puts the page together, and
`document` gives it the form that a sweep's page has too: one file that needs no network and holds no script
from elsewhere.
"""
