"""How a torch model is read: by the operations that it runs, not by its classes.

`trace.py` records a model as one graph of operations. Importing this package imports no torch.
"""
