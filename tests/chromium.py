"""Headless Chromium, driven over a pipe by https://chromedevtools.github.io/devtools-protocol/."""

import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')


def find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _pipe() -> tuple[int, int]:
    """Creates a pipe whose ends have numbers from 10 on."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]


class Chromium:
    """Browser with one page.

    Attributes:
        complaints: Errors of the console and uncaught exceptions.
        requests: Requested addresses, in order.
    """

    def __init__(self, profile: Path):
        options = ['--headless=new', '--remote-debugging-pipe', f'--user-data-dir={profile}', '--disable-gpu']
        options += ['--no-sandbox', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking']
        options += ['--hide-scrollbars', '--force-color-profile=srgb', 'about:blank']

        # The browser reads commands from descriptor 3 and answers on 4; ends with higher numbers are not overwritten.
        to_browser, self.writer = _pipe()
        self.reader, from_browser = _pipe()
        become = 'import os, sys; _, r, w, *command = sys.argv; os.dup2(int(r), 3); os.dup2(int(w), 4)'
        become += '; os.execv(command[0], command)'
        command = [sys.executable, '-c', become, str(to_browser), str(from_browser), find(), *options]
        self.process = subprocess.Popen(
            command,
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.ids, self.received, self.session = itertools.count(1), b'', None
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self.send('Target.createTarget', url='about:blank')['targetId']
        self.session = self.send('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Log', 'Network', 'DOM'):
            self.send(f'{domain}.enable')

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.writer)
        os.close(self.reader)

    def send(self, method: str, timeout: float = 30, **params) -> dict:
        number = next(self.ids)
        message = {'id': number, 'method': method, 'params': params}
        if self.session:
            message['sessionId'] = self.session
        data = json.dumps(message).encode() + b'\0'
        while data:
            data = data[os.write(self.writer, data) :]
        deadline = time.monotonic() + timeout
        while (answer := self._receive(deadline)).get('id') != number:
            self._note(answer)
        if 'error' in answer:
            raise RuntimeError(f'{method}: {answer["error"]["message"]}')
        return answer['result']

    def _receive(self, deadline: float) -> dict:
        while b'\0' not in self.received:
            if not select.select([self.reader], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError('Chromium does not answer')
            part = os.read(self.reader, 1 << 20)
            if not part:
                raise RuntimeError('Chromium has ended')
            self.received += part
        message, _, self.received = self.received.partition(b'\0')
        return json.loads(message)

    def _note(self, event: dict) -> None:
        params = event.get('params', {})
        match event.get('method'):
            case 'Runtime.exceptionThrown':
                self.complaints.append(json.dumps(params['exceptionDetails']))
            case 'Runtime.consoleAPICalled' if params['type'] in ('error', 'assert'):
                self.complaints.append(' '.join(str(a.get('value', a.get('description'))) for a in params['args']))
            case 'Log.entryAdded' if params['entry']['level'] == 'error':
                self.complaints.append(f'{params["entry"]["text"]} {params["entry"].get("url", "")}')
            case 'Network.requestWillBeSent':
                self.requests.append(params['request']['url'])

    def resize(self, width: int, height: int) -> None:
        self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, url: str) -> None:
        self.send('Page.navigate', url=url)

    def evaluate(self, expression: str):
        result = self.send('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in result:
            raise RuntimeError(json.dumps(result['exceptionDetails']))
        return result['result'].get('value')

    def wait(self, expression: str, condition: Callable = bool, seconds: float = 30):
        """Waits until the value of a JavaScript expression satisfies a condition, and returns it."""
        deadline = time.monotonic() + seconds
        while not condition(value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f'{expression} is still {value!r}; the console says {self.complaints}')
            time.sleep(0.05)
        return value

    def _find(self, selector: str) -> int:
        root = self.send('DOM.getDocument', depth=0)['root']['nodeId']
        node = self.send('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        assert node, f'{selector} does not exist'
        return node

    def upload(self, selector: str, path: Path) -> None:
        self.send('DOM.setFileInputFiles', nodeId=self._find(selector), files=[str(path)])

    def click(self, selector: str) -> None:
        """Clicks in the middle of an element."""
        self.send('DOM.scrollIntoViewIfNeeded', nodeId=self._find(selector))
        corners = self.send('DOM.getContentQuads', nodeId=self._find(selector))['quads'][0]
        at = dict(x=sum(corners[::2]) / 4, y=sum(corners[1::2]) / 4, button='left', clickCount=1)
        for kind in ('mousePressed', 'mouseReleased'):
            self.send('Input.dispatchMouseEvent', type=kind, **at)

    def type(self, text: str) -> None:
        self.send('Input.insertText', text=text)
