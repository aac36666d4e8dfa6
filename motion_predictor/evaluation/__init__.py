"""How well motion predictors predict, on datasets whose motion is known: figures, a plot and pictures.

Needs the extra packages of `pip install 'dynadrag[training]'`.
"""
