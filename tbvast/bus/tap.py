"""
C{twistd tbvast-plugin}: the bus as a service of its own.
"""

from __future__ import annotations

from pathlib import Path

from tbvast.bus.service import Bus
from tbvast.service.clock import use_monotonic_time
from tbvast.service.options import ServiceOptions
from tbvast.service.process import ServiceProcess, check_free, refusing
from tbvast.settings.schema import PluginSettings
from tbvast.values import HostPort


class Options(ServiceOptions):
    """
    The command line of C{twistd tbvast-plugin}.
    """

    service = "tbvast-plugin"
    settings_type = PluginSettings


def makeService(options: Options) -> ServiceProcess:
    """
    Make the service of the bus for C{twistd}.

    @param options: Parsed.
    @raise SystemExit: If it cannot be started; the reason is on standard error.
    """
    from twisted.internet import reactor  # twistd has installed it by now

    use_monotonic_time(reactor)
    settings: PluginSettings = options.settings
    with refusing(options):
        for endpoint in ("manage", "pub", "sub"):
            port = getattr(settings, endpoint)
            check_free(f"the {endpoint} endpoint", HostPort(settings.host, port))
        process = ServiceProcess(options, reactor)
        state = Path(process.state.path)
        Bus(reactor, settings, state, process.fail).setServiceParent(process)
    return process
