"""What the page (app.py) and the command `python -m studio` need to draw faces from seeds."""
