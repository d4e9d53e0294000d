"""The comparison of all characters by two encoders, made once for a test process."""

from data_prep.preparation import encoder
from storage.byte_pairs import GPT2_PATTERN

encoder._gigatoken_differs(GPT2_PATTERN)
