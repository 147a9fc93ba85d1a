"""Triton as the place where batches are computed: one request a batch, the slots' memory there, the sessions here."""
