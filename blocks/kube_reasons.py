"""Why the replicas of a release are not ready: the one reason that says most, in one line.

What the events and logs of a cluster say is asked for when it is needed; where we may not read
them, the rest is told.
"""

import logging
from collections.abc import Sequence

from blocks.kube_api import EVENTS, KubeApi, Object
from blocks.kube_troubles import Trouble, killed_for, of_deployment, of_pod, restarts_of, told
from policy.errors import NotAllowed
from policy.kube_names import CONTAINER

log = logging.getLogger("dafnck")

LINES = 20  # of a log, in which the last words are looked for


class KubeReasons:
    def __init__(self, api: KubeApi, namespace: str) -> None:
        self._api, self._namespace = api, namespace
        self._words: dict[tuple[str, int], str] = {}  # pod, restarts -> what it wrote last

    def trouble(self, found: Object, pods: Sequence[Object], *, quick: bool) -> Trouble:
        """That of a replica that ended says most, then what does not heal."""
        troubles = [(pod, trouble) for pod in pods if (trouble := of_pod(pod))]
        if not troubles:
            return of_deployment(found) or Trouble("pods are being made")
        troubles.sort(key=lambda pair: (not pair[1].ended, not pair[1].fatal, pair[1].vague))
        pod, trouble = troubles[0]
        if quick:
            return trouble
        if trouble.vague:
            words = told(self._events(pod)) or (of_deployment(found) or trouble).words
            return Trouble(words, trouble.fatal)
        if trouble.ended:
            if words := killed_for(self._events(pod)):
                return Trouble(f"was ended, since it did not come up: {words}", trouble.fatal)
            return Trouble(f"{trouble.words}: {self._words_of(pod)}".rstrip(": "), trouble.fatal)
        return trouble

    def _events(self, pod: Object) -> list[Object]:
        uid = pod["metadata"]["uid"]
        try:
            return self._api.list(EVENTS, self._namespace, fields=f"involvedObject.uid={uid}")
        except NotAllowed as error:
            log.debug("the events of a pod are not looked at: %s", error)
            return []

    def last_words(self, pods: Sequence[Object]) -> str:
        """What one that ended wrote last, before it was started again."""
        for pod in pods:
            if restarts_of(pod) and (words := self._words_of(pod)):
                return words
        return ""

    def _words_of(self, pod: Object) -> str:
        name, times = pod["metadata"]["name"], restarts_of(pod)
        if (name, times) not in self._words:
            statuses = (pod.get("status") or {}).get("containerStatuses") or []
            ours: Object = next((one for one in statuses if one["name"] == CONTAINER), {})
            just_ended = "terminated" in (ours.get("state") or {})
            try:
                text = self._api.log(self._namespace, name, lines=LINES, previous=not just_ended)
            except NotAllowed as error:
                log.debug("the log of a pod is not looked at: %s", error)
                text = ""
            said = [line.partition(" ")[2].strip() for line in text.splitlines()]
            if not (words := next((line for line in reversed(said) if line), "")):
                return ""
            self._words[name, times] = words
        return self._words[name, times]
