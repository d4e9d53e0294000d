"""Search for n-grams of some texts in a data set."""
