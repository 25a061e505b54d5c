<?xml version="1.0"?>
<!-- Makes a domain for Secure Execution of one that Terraform's libvirt provider writes, and closes every way into it. -->
<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
  <xsl:output omit-xml-declaration="yes" indent="yes"/>

  <xsl:template match="@*|node()">
    <xsl:copy>
      <xsl:apply-templates select="@*|node()"/>
    </xsl:copy>
  </xsl:template>

  <xsl:template match="/domain">
    <xsl:copy>
      <xsl:apply-templates select="@*|node()"/>
      <on_poweroff>destroy</on_poweroff>
      <on_reboot>destroy</on_reboot>
      <on_crash>destroy</on_crash>
      <launchSecurity type="s390-pv"/>
    </xsl:copy>
  </xsl:template>

  <!-- Disks: raw, through bounce buffers; the first two are read-only, and two are found by their serial numbers. -->
  <xsl:template match="devices/disk">
    <xsl:variable name="number" select="count(preceding-sibling::disk) + 1"/>
    <disk type="{@type}" device="disk">
      <driver name="qemu" type="raw" iommu="on">
        <xsl:if test="$number &gt; 2">
          <xsl:attribute name="discard">unmap</xsl:attribute>
        </xsl:if>
      </driver>
      <xsl:apply-templates select="source"/>
      <target dev="{concat('vd', substring('abcdefghijklmnopqrstuvwxyz', $number, 1))}" bus="virtio"/>
      <xsl:if test="$number &lt; 3">
        <readonly/>
      </xsl:if>
      <xsl:if test="$number = 2">
        <serial>casemate-archive</serial>
      </xsl:if>
      <xsl:if test="$number = 3">
        <serial>casemate-root</serial>
      </xsl:if>
    </disk>
  </xsl:template>

  <xsl:template match="devices/interface">
    <xsl:copy>
      <xsl:apply-templates select="@*|node()[not(self::driver)]"/>
      <driver iommu="on"/>
    </xsl:copy>
  </xsl:template>

  <!-- QEMU's core file would hold memory of the guest, such as it is. -->
  <xsl:template match="/domain/memory">
    <xsl:copy>
      <xsl:attribute name="dumpCore">off</xsl:attribute>
      <xsl:apply-templates select="@*|node()"/>
    </xsl:copy>
  </xsl:template>

  <xsl:template match="/domain/cpu">
    <cpu mode="host-model"/>
  </xsl:template>

  <!-- No graphics, no agent, no balloon, no console in which somebody could type; a console that is a file, and the record's port. -->
  <xsl:template match="on_poweroff|on_reboot|on_crash|graphics|video|channel|console|serial[parent::devices]|input|sound|memballoon|rng|controller[@type='usb']"/>
  <xsl:template match="devices">
    <xsl:variable name="made" select="substring-before(disk[1]/source/@file, '/cidata.img')"/>
    <xsl:copy>
      <xsl:apply-templates select="@*|node()"/>
      <controller type="virtio-serial" index="0">
        <driver iommu="on"/>
      </controller>
      <channel type="file">
        <source path="{$made}/record.json"/>
        <target type="virtio" name="casemate.record"/>
      </channel>
      <console type="file">
        <source path="{$made}/console.log" append="off"/>
        <target type="sclp" port="0"/>
      </console>
      <rng model="virtio">
        <backend model="random">/dev/urandom</backend>
        <driver iommu="on"/>
      </rng>
      <memballoon model="none"/>
    </xsl:copy>
  </xsl:template>

</xsl:stylesheet>
