"""Compares gigatoken with tiktoken when it is imported: a second that forks then need not take."""

from data_prep.preparation import encoder

encoder._gigatoken_differs()
