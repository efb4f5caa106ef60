"""Object detection: boxes, pages, a detector, COCO's precision.

``boxes`` holds the one convention, ``pages`` generates annotated pictures, ``picodet``
is what goes into a network and what comes out, ``coco`` judges, ``detector`` binds
them together.
"""
