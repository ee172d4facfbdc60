"""Beyond one process: training over MPI ranks, stages over executors, shards.

A training step is cut into slots that are summed in one fixed tree, so that any number of ranks gives the same bits. A
stage turns one input shard into one output file. MPI (mpi4py), Dask and Ray are extras; without them nothing here is
imported.
"""
