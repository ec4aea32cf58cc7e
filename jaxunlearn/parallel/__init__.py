"""The only place that names a device."""

from jax import device_count as device_count
from jax import process_count as process_count
from jax.distributed import shutdown as shutdown

from jaxunlearn.parallel.compilation import cache_compilations as cache_compilations
from jaxunlearn.parallel.hardware import device_kind as device_kind
from jaxunlearn.parallel.hardware import free_host_memory as free_host_memory
from jaxunlearn.parallel.hardware import free_memory as free_memory
from jaxunlearn.parallel.hardware import (
    linear_algebra_devices as linear_algebra_devices,
)
from jaxunlearn.parallel.hardware import loops_are_slow as loops_are_slow
from jaxunlearn.parallel.hardware import machine as machine
from jaxunlearn.parallel.hardware import peak_memory as peak_memory
from jaxunlearn.parallel.hardware import product_bytes as product_bytes
from jaxunlearn.parallel.meshes import automatic as automatic
from jaxunlearn.parallel.meshes import axis_of as axis_of
from jaxunlearn.parallel.meshes import global_mesh as global_mesh
from jaxunlearn.parallel.meshes import mesh_for_batch as mesh_for_batch
from jaxunlearn.parallel.meshes import mesh_for_rows as mesh_for_rows
from jaxunlearn.parallel.meshes import own_mesh as own_mesh
from jaxunlearn.parallel.meshes import own_share as own_share
from jaxunlearn.parallel.placement import fetch as fetch
from jaxunlearn.parallel.placement import from_mesh as from_mesh
from jaxunlearn.parallel.placement import join_processes as join_processes
from jaxunlearn.parallel.placement import keep_whole as keep_whole
from jaxunlearn.parallel.placement import place_cut as place_cut
from jaxunlearn.parallel.placement import place_gathered as place_gathered
from jaxunlearn.parallel.placement import place_rows as place_rows
from jaxunlearn.parallel.placement import place_whole as place_whole
from jaxunlearn.parallel.placement import zeros as zeros
from jaxunlearn.parallel.processes import from_first as from_first
from jaxunlearn.parallel.processes import initialize as initialize
from jaxunlearn.parallel.processes import process_index as process_index
from jaxunlearn.parallel.processes import wait_for_all as wait_for_all
from jaxunlearn.parallel.shards import Transform as Transform
from jaxunlearn.parallel.shards import check_transform as check_transform
from jaxunlearn.parallel.shards import map_shards as map_shards
from jaxunlearn.parallel.spreading import spread as spread
