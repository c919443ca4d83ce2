"""How well a model does on cases whose truth is known: a site's acceptance test before the model goes live."""
