"""Umbel beside its peers, by `make bench`: read `docs/benchmarks/README.md` first.

systems/    one small file for each system: how it sends, what runs its workers, how safe it is
work.py     the message that all of them send, and the effect that all of their jobs have
producer.py the sending process, under each system's own interpreter
servers.py  one Valkey and one RabbitMQ for the whole run
workers.py  worker processes, started by their own commands
trial.py    what is measured, in which order
backlog.py  the cost of a message while up to a million others wait
figures.py  the arithmetic
report.py   tables; plots.py: pictures
"""
