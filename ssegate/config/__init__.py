"""What users write: a YAML file becomes a `Config`, or a list of problems with their places."""

from ssegate.config.explain import explain as explain
from ssegate.config.explain import explain_github as explain_github
from ssegate.config.load import find_config as find_config
from ssegate.config.load import load_config as load_config
from ssegate.config.load import parse_config as parse_config
from ssegate.config.load import read_config as read_config
from ssegate.config.model import Config as Config
from ssegate.config.model import Route as Route
from ssegate.config.schema import json_schema as json_schema
from ssegate.config.values import Address as Address
from ssegate.config.values import Every as Every
from ssegate.config.values import Expression as Expression
