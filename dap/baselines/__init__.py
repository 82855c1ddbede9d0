"""The methods that DAP is compared with, behind the interface of dap.method.Method, each written from its paper."""
