"""Generated pages whose blocks are known exactly: pictures for a layout detector."""
