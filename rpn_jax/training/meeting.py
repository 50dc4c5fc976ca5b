"""How the processes of a run meet: process 0 listens, and the others tell it who they are.

JAX's own start ends a process by a crash where another is missing, comes twice, or cannot be
reached; here each of these is a line.
"""

import json
import logging
import os
import select
import socket
import time

from rpn_jax.errors import InputError
from rpn_jax.files import parse_json

logger = logging.getLogger(__name__)
PATIENCE = 10  # seconds between two lines that say who is waited for
ANSWER = 5  # seconds in which one that has connected must tell who it is
LONGEST = 65_536  # bytes of a message


def meet(address, processes, process, timeout):
    """Returns the host names of all processes, once all of them have come to HOST:PORT.

    Raises InputError where one is missing after `timeout` seconds, where they were started with
    different numbers or one of them twice, and where the port is taken or cannot be reached.
    """
    host, port = split(address)
    if process == 0:
        return _receive(address, port, processes, time.monotonic() + timeout)
    return _join(address, (host, port), processes, process, time.monotonic() + timeout)


def split(address):
    """Returns (host, port) of HOST:PORT; raises InputError where it is something else."""
    host, colon, port = address.rpartition(':')
    host = host.strip('[]')  # IPv6
    try:
        host.encode('idna')
    except UnicodeError:
        host = ''
    if not (colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f'--coordinator={address}: not HOST:PORT, as in node1:1234')
    return host, int(port)


def _receive(address, port, processes, end):
    """Lets the other processes come, and answers all of them at once."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(('', port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise InputError(
            f'--coordinator={address}: process 0 cannot listen there ({os.strerror(error.errno)}); '
            'another run may have the port: take another port, on all hosts'
        ) from error
    names, connections = {0: socket.gethostname()}, {}
    with server:
        try:
            shown = time.monotonic()
            while missing := [each for each in range(processes) if each not in names]:
                if (now := time.monotonic()) > end:
                    raise InputError(f'{_named(missing)} did not come to --coordinator={address}')
                if now - shown > PATIENCE:
                    shown = now
                    logger.warning(f'waiting for {_named(missing)}, to come to {address}')
                for ready in select.select([server, *connections], [], [], 0.5)[0]:
                    if ready is not server:  # it has ended: it may come again
                        del names[connections.pop(ready)]
                        ready.close()
                    elif (newcomer := _welcome(server, processes, names)) is not None:
                        connection, process, name = newcomer
                        connections[connection], names[process] = process, name
            names = [names[each] for each in range(processes)]
            _answer(connections, {'hosts': names})
            return names
        except InputError as error:
            _answer(connections, {'error': str(error)})
            raise


def _welcome(server, processes, names):
    """Returns (connection, process, host name) of a process that has come and belongs here.

    Returns None of any other, which is told why. Raises InputError where it was started for another
    number of processes.
    """
    connection, _ = server.accept()
    connection.settimeout(ANSWER)
    try:
        told = parse_json(_line(connection))
        process, count, name = told['process'], told['processes'], str(told['host'])
        if not type(process) is type(count) is int:
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError):
        connection.close()  # it is no process of a run
        return None
    if count == processes and process in range(processes) and process not in names:
        return connection, process, name
    if count == processes:
        message = f'there is no process {process} of {processes}'
        if process in names:
            logger.warning(f'process {process} was started twice: on {names[process]} and {name}')
            message = f'process {process} has come already, from {names[process]}; start each once'
        _answer([connection], {'error': message})
        return None
    message = (
        f'process {process} on {name} was started with --processes={count}, process 0 with '
        f'--processes={processes}; give all the same'
    )
    _answer([connection], {'error': message})
    raise InputError(message)


def _answer(connections, answer):
    for connection in connections:
        try:
            connection.sendall(json.dumps(answer).encode() + b'\n')
        except OSError:
            pass  # it has ended
        connection.close()


def _join(address, target, processes, process, end):
    """Connects to process 0, tells it who this is, and waits for its answer."""
    with _connect(address, target, end) as connection:
        about = {'process': process, 'processes': processes, 'host': socket.gethostname()}
        try:
            connection.sendall(json.dumps(about).encode() + b'\n')
            connection.settimeout(max(end - time.monotonic(), 0) + 2 * PATIENCE)
            answer = parse_json(_line(connection))
            if 'error' not in answer:
                return list(map(str, answer['hosts']))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f'--coordinator={address}: what answers there is no process 0 that waits for '
                'others: it has ended, its run has begun, or another program has the port'
            ) from error
    raise InputError(str(answer['error']))


def _connect(address, target, end):
    shown = time.monotonic()
    while True:
        try:
            return socket.create_connection(target, timeout=ANSWER)
        except OSError as error:  # also of a name that is not known yet, as in Kubernetes
            reason = error.strerror or 'no answer'
            if (now := time.monotonic()) > end:
                raise InputError(
                    f'--coordinator={address}: process 0 cannot be reached ({reason}); start it '
                    'with the same address, and let the port through between the hosts'
                ) from error
        if now - shown > PATIENCE:
            shown = now
            logger.warning(f'waiting for process 0 at {address} ({reason})')
        time.sleep(0.2)


def _line(connection):
    """Returns a line that a connection sends, within its timeout.

    Raises ValueError where it ends, is too long, or comes too slowly.
    """
    content, end = b'', time.monotonic() + (connection.gettimeout() or ANSWER)
    while not content.endswith(b'\n'):
        more = connection.recv(4096)
        if not more or len(content) > LONGEST or time.monotonic() > end:
            raise ValueError
        content += more
    return content


def _named(processes):
    shown = ', '.join(map(str, processes[:8])) + (', ..' if len(processes) > 8 else '')
    return f'process{"es" if len(processes) > 1 else ""} {shown}'
