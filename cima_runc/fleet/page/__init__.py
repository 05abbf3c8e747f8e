"""The service's page: what people read and decide in a browser, without JavaScript."""
