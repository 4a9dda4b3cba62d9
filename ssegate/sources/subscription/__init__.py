"""Subscriptions to a backend's webhooks: asked for, kept alive, remembered, removed."""

from ssegate.sources.subscription.graph import GraphProvider as GraphProvider
from ssegate.sources.subscription.keeper import Keeper as Keeper
from ssegate.sources.subscription.keeper import Status as Status
from ssegate.sources.subscription.ledger import TOKEN_LENGTH as TOKEN_LENGTH
from ssegate.sources.subscription.ledger import Ledger as Ledger
from ssegate.sources.subscription.ledger import Record as Record
from ssegate.sources.subscription.provider import Provider as Provider
from ssegate.sources.subscription.provider import RefusedError as RefusedError
from ssegate.sources.subscription.rest import RestProvider as RestProvider
from ssegate.sources.subscription.undo import Undo as Undo
from ssegate.sources.subscription.web import Web as Web
from ssegate.sources.subscription.websub import WebSubProvider as WebSubProvider
