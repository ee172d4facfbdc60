"""The Hugging Face hub: repositories where a path is expected, and `jpo push`.

Knows names, files and the hub's protocol through huggingface_hub (extra `hub`), which is imported when it is needed;
never what stands in the files. Nothing executable and no pickle is ever asked for.
"""
