"""
C{twistd tbvast-bridge}: the bridge as a service of its own.
"""

from __future__ import annotations

from tbvast.bridge.commands.stdout_sink import StdoutSink
from tbvast.bridge.service import Bridge
from tbvast.service.clock import use_monotonic_time
from tbvast.service.options import ServiceOptions
from tbvast.service.process import ServiceProcess, refusing
from tbvast.settings.schema import BridgeSettings


class Options(ServiceOptions):
    """
    The command line of C{twistd tbvast-bridge}.
    """

    service = "tbvast-bridge"
    settings_type = BridgeSettings


def makeService(options: Options) -> ServiceProcess:
    """
    Make the service of C{twistd tbvast-bridge}.

    @raise SystemExit: If the bridge cannot be started; the reason is on standard error.
    """
    from twisted.internet import reactor  # twistd has installed it by now

    use_monotonic_time(reactor)
    with refusing(options):
        to_stdout = options.settings.sink == StdoutSink.NAME
        process = ServiceProcess(options, reactor, log_aside=to_stdout)
        Bridge(reactor, options.settings, process).setServiceParent(process)
    return process
