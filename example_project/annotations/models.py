"""Projects have tasks, tasks have assets and segments, and segments have annotations."""

import hashlib
import secrets

from django.conf import settings
from django.db import models


class Project(models.Model):
    name = models.CharField(max_length=200, unique=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="projects")

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Task(models.Model):
    project = models.ForeignKey(Project, models.CASCADE, related_name="tasks")
    name = models.CharField(max_length=200)

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.name


class Asset(models.Model):
    """One frame of a task."""

    task = models.ForeignKey(Task, models.CASCADE, related_name="assets")
    frame = models.PositiveIntegerField()
    file = models.FileField(upload_to="assets")
    size = models.PositiveBigIntegerField(help_text="Bytes.")

    class Meta:
        ordering = ["task", "frame"]
        constraints = [
            models.UniqueConstraint(fields=["task", "frame"], name="one_asset_per_frame")
        ]

    def __str__(self) -> str:
        return f"{self.task}, frame {self.frame}"


class Segment(models.Model):
    """The frames of a task that one person annotates; one chunk is a file with all of them."""

    task = models.ForeignKey(Task, models.CASCADE, related_name="segments")
    first_frame = models.PositiveIntegerField()
    last_frame = models.PositiveIntegerField()
    assignee = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, blank=True, related_name="segments"
    )
    chunk = models.FileField(upload_to="chunks")

    class Meta:
        ordering = ["task", "first_frame"]

    def __str__(self) -> str:
        return f"{self.task}, frames {self.first_frame} to {self.last_frame}"


class Annotation(models.Model):
    """A labelled box on one frame; pixels from the top left corner."""

    segment = models.ForeignKey(Segment, models.CASCADE, related_name="annotations")
    frame = models.PositiveIntegerField()
    label = models.CharField(max_length=50)
    left = models.PositiveIntegerField()
    top = models.PositiveIntegerField()
    width = models.PositiveIntegerField()
    height = models.PositiveIntegerField()

    class Meta:
        ordering = ["segment", "frame", "pk"]

    def __str__(self) -> str:
        return f"{self.label} on frame {self.frame}"


class Token(models.Model):
    """A credential for programs. Only a digest is stored, so a copy of the table is useless."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="tokens")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"token of {self.user}"

    @classmethod
    def issue(cls, user: models.Model) -> str:
        """Return a new key that logs *user* in; it can't be read again."""
        key = secrets.token_urlsafe(32)
        cls.objects.create(user=user, digest=cls.digest_of(key))
        return key

    @staticmethod
    def digest_of(key: str) -> str:
        """Return what is stored of *key*; it is random and long, so it needs no slow hash."""
        return hashlib.sha256(key.encode()).hexdigest()
