"""Generated pages whose blocks are known exactly: images for a layout detector."""
