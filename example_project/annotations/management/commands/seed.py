"""`manage.py seed`, which makes the example's data and a user."""

import io
import os
import secrets
import zipfile
from typing import Any

from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from annotations import scenes
from annotations.models import Annotation, Asset, Project, Segment, Task

TASKS = {"Crossroads": ["Morning", "Evening"], "Bus station": ["Platform 1"]}
FRAMES, FRAMES_PER_SEGMENT = 12, 4


class Command(BaseCommand):
    help = (
        "Fill an empty database with projects, and with a user 'annotator'. Its password comes from"
        " SEED_PASSWORD."
    )

    @transaction.atomic
    def handle(self, **options: Any) -> None:
        if Project.objects.exists():
            raise CommandError("There are projects in this database already: nothing was changed.")
        password = os.environ.get("SEED_PASSWORD") or secrets.token_urlsafe(9)
        user = get_user_model().objects.create_superuser("annotator", password=password)
        if "SEED_PASSWORD" not in os.environ:
            self.stdout.write(f"Log in as annotator with the password {password}")
        scene = 0
        for name, tasks in TASKS.items():
            project = Project.objects.create(name=name, owner=user)
            for task in tasks:
                self._annotate(Task.objects.create(project=project, name=task), scene, user)
                scene += 1

    def _annotate(self, task: Task, scene: int, user: Any) -> None:
        for first in range(0, FRAMES, FRAMES_PER_SEGMENT):
            frames = range(first, first + FRAMES_PER_SEGMENT)
            pictures = {frame: scenes.svg(scene, frame).encode() for frame in frames}
            segment = Segment.objects.create(
                task=task,
                first_frame=frames[0],
                last_frame=frames[-1],
                assignee=user,
                chunk=ContentFile(
                    _packed(pictures),
                    name=f"task_{task.pk}_chunk_{first // FRAMES_PER_SEGMENT}.zip",
                ),
            )
            for frame, picture in pictures.items():
                file = ContentFile(picture, name=f"task_{task.pk}_frame_{frame}.svg")
                Asset.objects.create(task=task, frame=frame, file=file, size=len(picture))
                Annotation.objects.bulk_create(
                    Annotation(segment=segment, frame=frame, **box._asdict())
                    for box in scenes.boxes(scene, frame)
                )


def _packed(pictures: dict[int, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for frame, picture in pictures.items():
            archive.writestr(f"{frame:06}.svg", picture)
    return packed.getvalue()
