"""Deletion requests that come one after another, and what is kept to serve them."""

from jaxunlearn.ledger.entries import Entry as Entry
from jaxunlearn.ledger.ledger import Ledger as Ledger
from jaxunlearn.ledger.replaying import Replay as Replay
from jaxunlearn.ledger.revival import Revived as Revived
