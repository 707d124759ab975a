"""advcore as an attack of other libraries: one module for each, which needs that library.

They are `advlib`, `art`, `attackbench`, `foolbox`, `secml` and `torchattacks`; see
``docs/adapters.md``.
Importing this package imports none of them.
"""
