"""One module a strategy; :data:`deploynas.search.strategy.STRATEGIES` finds them by name."""
