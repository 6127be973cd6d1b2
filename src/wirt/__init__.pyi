# What a type checker sees of the lazy names in __init__.py.
from wirt.errors import WirtError as WirtError
from wirt.spec.machine import Machine as Machine
from wirt.store.layout import home_at as home_at
from wirt.vm.context import Context as Context
from wirt.vm.vm import Result as Result
from wirt.vm.vm import Vm as Vm
from wirt.vm.vm import create as create
from wirt.vm.vm import machines as machines
from wirt.vm.vm import run as run

__version__: str
