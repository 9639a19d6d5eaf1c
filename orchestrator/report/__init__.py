"""One page that tells a run: curves, throughput, where the time went, events, environment; and how two runs
differ.

`curves` reads what loggers have written, `charts` draws it as SVG, `page` puts the page together. The page is
one file that needs no network and holds no script from elsewhere.
"""
