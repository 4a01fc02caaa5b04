"""
What pyproject.toml cannot say: the plugins that twistd is to find.
"""

from setuptools import find_packages, setup

setup(
    # twisted/plugins has no __init__.py, nor has twisted: Twisted's own stay in
    # charge, and look for plugins in every directory of that name.
    packages=[*find_packages(include=["tbvast", "tbvast.*"]), "twisted.plugins"],
    # Said explicitly, an editable install puts this directory on the path; with the
    # import hook that it would install otherwise, twistd does not find the plugins.
    package_dir={"": "."},
    package_data={"tbvast": ["py.typed"]},
    zip_safe=False,
)
