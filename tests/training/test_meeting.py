"""How processes meet: all come, or each is told in a line why not."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from rpn_jax.errors import InputError
from rpn_jax.training import meeting


@pytest.fixture
def address():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        port = taken.getsockname()[1]
    return f'127.0.0.1:{port}'


def meet_all(address, calls, timeout=10):
    """Returns what meet gives or raises for each (processes, process), all at once."""

    def meet(processes, process):
        try:
            return meeting.meet(address, processes, process, timeout)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: meet(*call), calls))


def test_all_that_come_know_the_hosts_of_all(address):
    name = socket.gethostname()
    assert meet_all(address, [(3, 2), (3, 0), (3, 1)]) == [[name] * 3] * 3


def test_who_does_not_come_is_named_to_all(address):
    lines = meet_all(address, [(4, 0), (4, 2)], timeout=1)
    assert lines == [f'processes 1, 3 did not come to --coordinator={address}'] * 2


def test_other_numbers_of_processes_end_all(address):
    first, second = meet_all(address, [(2, 0), (3, 1)])
    assert first == second
    assert 'was started with --processes=3, process 0 with --processes=2; give all' in first


def test_a_process_that_is_started_twice_is_told_and_the_others_meet(address):
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(meeting.meet, address, 3, 0, 20)
        second = threads.submit(meeting.meet, address, 3, 1, 20)
        twin = threads.submit(meeting.meet, address, 3, 1, 20)
        failed = next(each for each in (second, twin) if isinstance(error_of(each, 5), InputError))
        assert str(failed.exception()).startswith('process 1 has come already, from ')
        third = meeting.meet(address, 3, 2, 20)
        (came,) = {second, twin} - {failed}
        assert first.result() == came.result() == third


def error_of(future, timeout):
    """Returns the exception of a future, None where it has none in time."""
    try:
        return future.exception(timeout)
    except TimeoutError:
        return None


@pytest.mark.parametrize(
    'line',
    [
        b'[' * 60_000,
        b'{"process": [], "processes": 2, "host": "x"}',
        b'{"process": 7, "processes": 2, "host": "x"}',
        b'{"process": true, "processes": 2, "host": "x"}',
        b'\xff',
    ],
)
def test_a_stranger_is_sent_away_and_the_others_meet(address, line):
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(meeting.meet, address, 2, 0, 20)
        with meeting._connect(address, meeting.split(address), float('inf')) as connection:
            connection.sendall(line + b'\n')
            connection.settimeout(10)
            answer = connection.recv(4096)
        assert answer == b'' or b'there is no process 7 of 2' in answer
        assert meeting.meet(address, 2, 1, 20) == first.result()


def test_one_that_ends_while_it_waits_may_come_again(address):
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(meeting.meet, address, 2, 0, 20)
        target = meeting.split(address)
        with meeting._connect(address, target, float('inf')) as connection:
            about = {'process': 1, 'processes': 2, 'host': 'a', 'more': 1}
            connection.sendall(json.dumps(about).encode()[:9])
        names = meeting.meet(address, 2, 1, 20)
        assert names == first.result()


def test_a_port_that_is_taken_is_a_line(address):
    with socket.create_server(meeting.split(address)):
        with pytest.raises(InputError, match=r'cannot listen there \(Address already in use\); an'):
            meeting.meet(address, 2, 0, 1)


def test_where_nobody_answers_is_a_line(address):
    with pytest.raises(InputError, match=r'process 0 cannot be reached \(Connection refused\); '):
        meeting.meet(address, 2, 1, 0.3)


@pytest.mark.parametrize('answer', [b'', b'HTTP/1.1 400 Bad Request\r\n', b'[1]\n', b'\xff\n'])
def test_what_is_no_process_0_is_a_line(address, answer):
    with ThreadPoolExecutor(1) as threads, socket.create_server(meeting.split(address)) as server:
        waiting = threads.submit(meeting.meet, address, 2, 1, 5)
        connection, _ = server.accept()
        connection.sendall(answer)
        connection.recv(1000)
        connection.close()
        with pytest.raises(InputError, match='what answers there is no process 0 that waits'):
            waiting.result()


@pytest.mark.parametrize(
    'text', ['node', 'node:', ':12', 'node:x', 'node:0', 'node:65536', '', '.x:1', f'{"a" * 64}:1']
)
def test_an_address_is_a_host_and_a_port(text):
    with pytest.raises(InputError, match='not HOST:PORT'):
        meeting.split(text)


def test_an_address_may_be_of_version_6():
    assert meeting.split('[::1]:80') == ('::1', 80) and meeting.split('a.b:1') == ('a.b', 1)
