"""Which n-grams of some texts occur in a data set."""
