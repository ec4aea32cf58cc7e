"""Requests of a method that shares nothing between them: each by itself."""

import inspect
from typing import Any

from jaxunlearn.checks import check_type
from jaxunlearn.descent.unlearning import Result
from jaxunlearn.progress import Progress


class EachByItself:
    """Requests of a method that has nothing to share: it is called for each."""

    def __init__(self, method, classifier, requests, key, how, mesh, progress, watch):
        del how, progress  # The method's results bring their own seconds.
        self._given = classifier, key, mesh
        self._requests, self._watch = requests, watch
        taken = inspect.signature(method).parameters
        everything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        self._options = {n for n in ("mesh", "progress") if n in taken or everything}
        self._measures = hasattr(method, "measured")
        self._last: tuple[int, Any] = (-1, None)

    def __call__(self, method: Any, progress: Progress = None) -> list[Result]:
        """The method's result for every request."""
        classifier, key, mesh = self._given
        options = {"mesh": mesh, "progress": progress}
        options = {name: options[name] for name in self._options}
        results = []
        for number, task in enumerate(self._requests.tasks()):
            if self._measures:
                options["measured"] = self._measured(method, number, task)
            result = method(classifier, task, key=key, **options)
            check_type("What method returns", result, Result)
            results.append(result)
        return results

    def _measured(self, method, number, task):
        """What a request's candidates share; of the last request, kept for them."""
        classifier, key, _ = self._given
        if self._last[0] != number:
            self._last = (-1, None)  # Before the next is there.
            with self._watch.stage("statistics"):
                self._last = number, method.measured(classifier, task, key)
        return self._last[1]

    def costs(self) -> dict[str, Any]:
        """As of `Prepared`: nothing is shared."""
        nothing = {"statistics": 0, "labels": 0}
        how = {"how": "one by one", "at_once": 1, "step_seconds": {}, "proxies": None}
        return {**how, "passes": nothing, "samples_read": nothing}
