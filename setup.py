"""
What pyproject.toml cannot say: the plugins that twistd is to find.
"""

from setuptools import find_packages, setup

setup(
    # twisted/plugins has no __init__.py, nor has twisted: Twisted's own stay in
    # charge, and look for plugins in every directory of that name.
    packages=[*find_packages(include=["tbvast", "tbvast.*"]), "twisted.plugins"],
    package_data={"tbvast": ["py.typed"]},
    zip_safe=False,
)
