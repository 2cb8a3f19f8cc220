"""What cloud-init's NoCloud data source finds in a directory, as one JSON object."""
import json
import sys

from cloudinit import helpers, util
from cloudinit.sources import DataSourceNoCloud

paths = helpers.Paths({"cloud_dir": sys.argv[1], "run_dir": sys.argv[1]})
source = DataSourceNoCloud.DataSourceNoCloud({"datasource": {"NoCloud": {"fs_label": None, "seedfrom": sys.argv[2]}}}, None, paths)
# Without this machine's own firmware and seeds.
source.seed_dirs = []
util.get_cmdline = lambda: "ds=nocloud;s=" + sys.argv[2]
found = source._get_data()
print(json.dumps([found, source.get_instance_id(), util.decode_binary(source.userdata_raw)]))
