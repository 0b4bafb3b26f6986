"""`make soak`: each fault many times under a steady load, for Umbel and for plain Celery.

`rows` says which faults, `trial` puts a subject through one of them, `outcome` is what came of it
and whether that is a failure, `report` makes the tables of docs/reliability.md from
docs/reliability.json.
"""
