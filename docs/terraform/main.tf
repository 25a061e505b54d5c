# One machine under Secure Execution, through Terraform or OpenTofu. Run `casemate machine define --libvirt deployment.yaml -o xml`
# first: it makes the volume with the contract and the root disk in `made`.

terraform {
  required_providers {
    libvirt = {
      source  = "dmacvicar/libvirt"
      version = "~> 0.8.0" # 0.9 has other words for all of this, and launch security among them
    }
  }
}

variable "name" {
  type    = string
  default = "db"
}

variable "image" {
  type        = string
  description = "The image directory"
  default     = "/var/lib/libvirt/images/image"
}

variable "made" {
  type        = string
  description = "The machine's directory, below `directory` of the deployment file"
  default     = "/var/lib/libvirt/images/casemate/db"
}

provider "libvirt" {
  uri = "qemu:///system"
}

resource "libvirt_volume" "data" {
  name   = "${var.name}-data.img"
  pool   = "default"
  format = "raw"
  size   = 10737418240

  lifecycle {
    prevent_destroy = true
  }
}

resource "libvirt_domain" "machine" {
  name      = var.name
  arch      = "s390x"
  machine   = "s390-ccw-virtio"
  memory    = 4096
  vcpu      = 2
  autostart = true
  kernel    = "${var.image}/casemate.img"

  # The order is that of casemate: contract, archive, root, then data. The style sheet adds what the provider has no word for.
  disk {
    file = "${var.made}/cidata.img"
  }
  disk {
    file = "${var.image}/root.squashfs"
  }
  disk {
    file = "${var.made}/root.img"
  }
  disk {
    volume_id = libvirt_volume.data.id
  }

  network_interface {
    network_name = "default"
  }

  xml {
    xslt = file("${path.module}/secure-execution.xsl")
  }
}
