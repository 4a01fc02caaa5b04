"""
Which fields of events can hold an observable.
"""
