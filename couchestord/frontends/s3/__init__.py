"""S3 over HTTP.

Pure protocol at the bottom (`routes`, `sigv4`, `chunked`, `checksums`, `xml`, `errors`, `fields`: no I/O, no clock),
then the body of a request (`body`) and what a handler is given (`call`), then the handlers by resource, then `server`,
which authenticates, authorises, dispatches and answers errors.
"""
