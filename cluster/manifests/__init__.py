"""Files with which a cluster is asked for: KubeRay's RayJob, a Slurm batch script, Ray's own cluster
launcher.

Each is made with comments for the person who will edit it, and checked strictly afterwards: a field that the
system does not document, or a needed one that is missing, is an error that names the nearest field.
"""
