"""The code that several experiments share, and the code that keeps and shows their results."""
