"""Words of the command line. What a verb needs is imported when it is called: no verb waits for another's imports."""
