"""The comparison of all characters by two encoders, made once for a test process."""

from data_prep.preparation import encoder

encoder._gigatoken_differs()
