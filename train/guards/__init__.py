"""What is checked while training: loss spikes, replicas, stragglers, and single windows of a bad
step."""
