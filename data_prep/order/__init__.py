"""The order of training: which window of which document comes when. A pure function of data and
seed."""
