"""Child processes that exchange JSON lines with their parent: used by the demo and the benchmark.

``child`` is the parent's side, ``child_program`` the child's, ``json_lines`` the stream between them. The messages
themselves belong to the programs.
"""
