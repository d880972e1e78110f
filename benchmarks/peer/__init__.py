"""What ``benchmarks/peers.py`` is made of.

forms      what is compared: forms of weights, variants of each peer, cells of the table
venvs      a virtual environment a peer
models     the three models as Hugging Face folders, and what each peer wants of them
drivers/   one script a peer, run by that peer's own interpreter; they import nothing from here but each other
watch      whether the machine was quiet
measure    runs of ours and of a peer, one after the other, cell by cell
goals      what a cell has to reach, and whether it did
best       the best peer of a cell
goal_tables, limit_tables, page, markdown    the results as tables
http       the servers
"""
