def report(a,b): pass
