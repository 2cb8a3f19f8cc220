"""What cloud-init's own data sources make of the metadata server on the clouds' address, as one JSON object."""
import json
import sys

from cloudinit import distros, helpers, util
from cloudinit.sources import DataSourceEc2, DataSourceGCE, DataSourceOpenStack

address = "http://169.254.169.254"
paths = helpers.Paths({"cloud_dir": sys.argv[1], "run_dir": sys.argv[1]})
text = lambda data: data if data is None else util.decode_binary(data)

gce = DataSourceGCE.DataSourceGCE({}, None, paths)
google = DataSourceGCE.read_md(
    address=address + "/computeMetadata/v1/", url_params=gce.get_url_params(), platform_check=False
)
openstack = DataSourceOpenStack.read_metadata_service(address, ssl_details={})
meta, user, vendor = util.read_seeded(address + "/nocloud/")
amazon = DataSourceEc2.DataSourceEc2({}, distros.fetch("debian")("debian", {}, paths), paths)
# Where it runs is told by the firmware, which nobody has here.
amazon._cloud_name = DataSourceEc2.CloudNames.AWS
amazon.ds_cfg["metadata_urls"] = [address]
found = amazon.wait_for_metadata_service()
crawled = amazon.crawl_metadata() if found else {}

print(
    json.dumps(
        {
            "gce": [google["success"], google["meta-data"]["local-hostname"], text(google["user-data"])],
            "openstack": [openstack["metadata"]["uuid"], text(openstack["userdata"])],
            "nocloud": [meta["instance-id"], meta["local-hostname"], text(user), text(vendor)],
            "ec2": [
                crawled["meta-data"]["instance-id"],
                text(crawled["user-data"]),
                crawled["meta-data"]["public-keys"],
            ],
        }
    )
)
