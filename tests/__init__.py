"""
The tests; those that need real components are in L{tests.functional}.
"""

from hypothesis import HealthCheck, settings

from tests import isolation

# How busy the machine is says nothing about the code.
settings.register_profile("tbvast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tbvast")

isolation.install()
